"""What is done with counts before any method: open, crop and bin, statistics, regions, thinning, streams.

May import: sources, passes and what lies below. Used by every wing above.
"""
