"""Gymnasium environments around a draft/target pair: replayed from recordings, or live."""
