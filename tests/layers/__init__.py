"""Tests of the layers that need no reference, and the table that the parity tests share."""
