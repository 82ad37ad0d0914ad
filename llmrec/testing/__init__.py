"""What tests import: tiny worlds, and conformance classes that a new implementation of a seam subclasses."""
