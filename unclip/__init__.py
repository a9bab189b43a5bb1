"""unclip: run, train and explore unCLIP (DALL·E 2-style) models."""

__version__ = "0.1.0"
