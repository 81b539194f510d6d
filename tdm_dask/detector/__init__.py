"""The detector plane: optic axis, angles, disk, descan, conventional masks, profiles; with it, scan step and dose.

May import: counts and what lies below. Used by masks, imaging and the wings that show them.
"""
