"""Where vectors are kept: the protocol that the index needs, and Qdrant's in-process engine behind it."""
