"""The selective scan: one operator, its oracle and its faces."""
