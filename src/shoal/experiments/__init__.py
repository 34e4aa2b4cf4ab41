"""One file a published system: the experiment that justifies it."""
