"""Other stacks' configs into jaxflow's: what is given, what it means there, the same run here.

Knows the dialects of verl and TRL and jaxflow's schema. Runs nothing, downloads nothing, opens no weights.
"""
