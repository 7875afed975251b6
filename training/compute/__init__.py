"""How a step is computed: over processes, in pieces or slices, and what it costs."""
