"""The decision and everything it rests on: pure, synchronous, without I/O."""
