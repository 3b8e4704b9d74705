"""What liftax costs beside its peers and beside the same model written by hand.

Run ``python -m benchmarks --list`` for the tables, ``python -m benchmarks`` for all of them, and
``python -m benchmarks.profile CASE`` to see where liftax spends the time of one case.
``docs/benchmarks.md`` explains the method.
"""
