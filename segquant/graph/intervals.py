"""Interval arithmetic: proven bounds of the values an elementwise operation returns."""

from math import exp, inf, isfinite
from typing import Any

Interval = tuple[float, float]
ANY: Interval = (-inf, inf)

# Ranges over the whole real line, rounded outwards.
_RANGES: dict[str, Interval] = {
    "silu": (-0.2785, inf),
    "gelu": (-0.1701, inf),
    "mish": (-0.3089, inf),
    "hardswish": (-0.3751, inf),
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "elu": (-1.0, inf),
    "celu": (-1.0, inf),
    "selu": (-1.7581, inf),
    "softplus": (0.0, inf),
    "exp": (0.0, inf),
    "exp2": (0.0, inf),
    "expm1": (-1.0, inf),
    "abs": (0.0, inf),
    "square": (0.0, inf),
    "sqrt": (0.0, inf),
    "rsqrt": (0.0, inf),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "log_sigmoid": (-inf, 0.0),
    "tanh": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "sign": (-1.0, 1.0),
    "softmax": (0.0, 1.0),
    "_softmax": (0.0, 1.0),
}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or"}
# The first lie nowhere above relu. All map zero to zero and keep the sign: a bound at zero stays.
_BELOW_RELU = {"silu", "gelu", "mish", "hardswish", "relu", "relu6"}
_SIGN_KEEPING = _BELOW_RELU | {"tanh", "erf", "sign", "elu", "celu", "selu", "expm1"}
_ROUNDING = {"floor", "ceil", "round", "trunc"}


def hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def multiply(a: Interval, b: Interval) -> Interval:
    products = [0.0 if x == 0.0 or y == 0.0 else x * y for x in a for y in b]
    return min(products), max(products)


def add(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]


def negate(a: Interval) -> Interval:
    return -a[1], -a[0]


def elementwise(name: str, args: dict[str, Any]) -> Interval:
    """Bounds of the result of `name`; `args` holds intervals in place of tensors and numbers."""
    x = args.get("self", args.get("input", ANY))
    if not isinstance(x, tuple):
        return ANY
    if name in _COMPARISONS:
        return 0.0, 1.0
    if name in _RANGES:
        return _in_range(name, x, args)
    if name in _BINARY:
        return _binary(name, x, args)
    if name == "neg":
        return negate(x)
    if name in _ROUNDING:
        return x[0] - 1.0, x[1] + 1.0
    if name == "pow":
        exponent = args.get("exponent")
        even = isinstance(exponent, tuple) and exponent[0] == exponent[1] and exponent[0] % 2 == 0
        return (0.0, inf) if even or x[0] >= 0.0 else ANY
    if name in ("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"):
        return _clamp(x, args.get("min", args.get("min_val")), args.get("max", args.get("max_val")))
    if name == "masked_fill":
        return hull(x, args["value"]) if isinstance(args.get("value"), tuple) else ANY
    return ANY


_BINARY = {"mul", "add", "sub", "rsub", "div", "where", "maximum", "minimum"}


def _binary(name: str, x: Interval, args: dict[str, Any]) -> Interval:
    y = args.get("other")
    if not isinstance(y, tuple):
        return ANY
    alpha = args.get("alpha")
    if isinstance(alpha, tuple):
        x, y = (multiply(x, alpha), y) if name == "rsub" else (x, multiply(y, alpha))
    if name == "mul":
        return multiply(x, y)
    if name == "add":
        return add(x, y)
    if name == "sub":
        return add(x, negate(y))
    if name == "rsub":
        return add(y, negate(x))
    if name == "div":
        return ANY if args.get("rounding_mode") else _divide(x, y)
    if name == "where":
        return hull(x, y)
    pick = max if name == "maximum" else min
    return pick(x[0], y[0]), pick(x[1], y[1])


def _divide(x: Interval, y: Interval) -> Interval:
    if y[0] > 0.0 or y[1] < 0.0:
        return multiply(x, (1.0 / y[1], 1.0 / y[0]))
    if y[0] == 0.0:
        return multiply(x, (0.0 if y[1] == inf else 1.0 / y[1], inf)) if y[1] > 0.0 else ANY
    return ANY


def _in_range(name: str, x: Interval, args: dict[str, Any]) -> Interval:
    low, high = _RANGES[name]
    if name in ("elu", "celu"):
        scale = multiply(args.get("alpha", ANY), args.get("scale", (1.0, 1.0)))
        low, high = (-scale[0], high) if scale[0] == scale[1] and scale[0] > 0.0 else ANY
    if name in _SIGN_KEEPING:
        low = max(low, 0.0) if x[0] >= 0.0 else low
        high = min(high, 0.0) if x[1] <= 0.0 else high
    if name in _BELOW_RELU:
        high = min(high, max(x[1], 0.0))
    if name == "exp":
        high = exp(x[1]) if x[1] < 80.0 else high
    if name in ("abs", "square") and isfinite(x[0]) and isfinite(x[1]):
        bound = max(abs(x[0]), abs(x[1]))
        high = bound if name == "abs" else bound * bound
    return low, high


def _clamp(x: Interval, low: Any, high: Any) -> Interval:
    lower, upper = x
    if isinstance(low, tuple):
        lower, upper = max(lower, low[0]), max(upper, low[1])
    if isinstance(high, tuple):
        lower, upper = min(lower, high[0]), min(upper, high[1])
    return lower, upper
