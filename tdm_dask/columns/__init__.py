"""Atom columns: found in an image, refined below the scan step, laid out by a lattice or a crystal structure."""
