"""Checkpoint files: what they are, what they hold, and their weights in our networks.

``content`` says what a file is, ``pickles`` reads a pickle without running it and ``dangers`` knows
what would have run, ``tensors`` and ``reading`` make tensors of what it describes, ``wrappers``
knows where frameworks put the weights, ``loading`` puts them into a network.
"""

from mambapose.export.checkpoints.loading import (
    KeyTable,
    Rows,
    Tell,
    key_table,
    load_weights,
    read_state_dict,
)

__all__ = ["KeyTable", "Rows", "Tell", "key_table", "load_weights", "read_state_dict"]
