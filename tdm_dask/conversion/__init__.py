"""The way of a vendor's file into a store: sampled before, written shard by shard, checked after.

May import: counts, sources and what lies below. Used by masks (proxies), simulation and the command line.
"""
