"""The selective scan: one operator, its oracle, and the forms in which it is called."""
