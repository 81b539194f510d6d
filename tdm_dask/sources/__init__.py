"""Vendor files as sources of counts: what they have in common here, one file for each format in `formats`.

May import: reading and what lies below. Used by counts, to open a file, and by conversion.
"""
