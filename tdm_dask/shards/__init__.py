"""Bytes of a zarr 3 array: the objects of a store, on disk and on S3, and the shards that counts lie in.

May import: errors, words, kernels. Used by reading and conversion, and by whoever writes into a store.
"""
