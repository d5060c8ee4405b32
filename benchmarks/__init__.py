"""Benchmarks: each is one command, interleaves what it compares and writes JSON with raw samples."""
