"""What images are worth: cross-talk, noise, and what a mask is evidence for."""
