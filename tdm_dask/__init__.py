"""Template-derived masks for 4D-STEM: atom-column-sensitive images from scans of any size."""
