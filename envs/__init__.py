"""Gymnasium environments around a draft/target pair: replayed from recordings, or live.

Importing this package registers ``SpecPilot/SpeculationLength-v0`` and ``SpecPilot/StopContinue-v0``.
"""

from gymnasium.envs.registration import register, registry

SPECULATION_LENGTH = "SpecPilot/SpeculationLength-v0"
STOP_CONTINUE = "SpecPilot/StopContinue-v0"

if SPECULATION_LENGTH not in registry:
    register(
        SPECULATION_LENGTH,
        entry_point="specpilot.envs.speculation_length:SpeculationLengthEnv",
        vector_entry_point="specpilot.envs.vector:SpeculationLengthVectorEnv",
    )
    register(STOP_CONTINUE, entry_point="specpilot.envs.stop_continue:StopContinueEnv")

__all__ = ["SPECULATION_LENGTH", "STOP_CONTINUE"]
