"""Tests of specpilot; they mirror the tree."""
