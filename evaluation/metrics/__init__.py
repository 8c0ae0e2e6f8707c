"""One file a metric: what it is called, what it needs, which way is better, and the function.

A file is a metric when it says `METRIC = ClassName`; `metric_catalogue` finds it. Nothing else has
to be told: evaluation, tables, comparison and the per-image file read the class and its `SHOWN`.
"""
