"""The mathematics of noise, as pure functions of tensors: processes, and the log-probability of a stochastic step.

To add a process: one file with a frozen dataclass that offers ``visfeedback.types.protocols.Process``.
May import types; never diffusers (a scheduler is read by its attributes, and the tests compare with the real ones).
"""
