"""Atom columns: found in an image, refined below the scan step, laid out by a lattice or a crystal structure.

May import: detector, counts and what lies below. Used by masks (templates need sites), evaluation and figures.
"""
