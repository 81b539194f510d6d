"""The detector plane: optic axis, angles and the bright-field disk, descan, conventional masks, radial profiles.

May import: counts and what lies below. Used by masks, imaging and the wings that show them.
"""
