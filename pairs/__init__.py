"""Pairs that ship with the package, as data."""
