from tppo.maths.objectives import AGGREGATIONS, Aggregation, aggregate_count, aggregate_sum  # noqa
