"""Images to numbers to tables: metrics, statistics, records, tables, figures."""
