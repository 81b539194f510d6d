"""One file for each format of vendors and programs: a function that turns a request into a `VendorFile`.

May import: sources beside it, reading and what lies below. Used by the registry of formats alone.
"""
