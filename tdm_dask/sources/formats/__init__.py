"""One file for each format of vendors and programs: a function that turns a request into a `VendorFile`.

May import: sources beside it, reading and what lies below. `registry`, which knows them all, is what counts, conversion
and report open files by; no other file here is used from outside.
"""
