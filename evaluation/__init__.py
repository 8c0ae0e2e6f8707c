"""Images to numbers to tables: metrics, statistics, records, tables, figures.

Nothing heavy is imported here; import the module that is wanted, such as `evaluation.evaluate`.
"""

from evaluation.records import (
    SCHEMA_VERSION,
    Metric,
    MetricUnavailable,
    Record,
    read_record,
    stable_view,
    write_record,
)

__all__ = [
    "SCHEMA_VERSION",
    "Metric",
    "MetricUnavailable",
    "Record",
    "read_record",
    "stable_view",
    "write_record",
]
