"""Counts on their way into memory: sources as values, blocks, lazy arrays, the store of a scan.

May import: what lies below (kernels, shards, cluster). Used by passes, sources and every wing that is given counts.
"""
