"""Scans that are simulated by multislice, of perfect and defective specimens, straight into stores."""
