"""How much one request may ask for: known to the schema of requests, and to clients without loading it."""

BODY_BYTES = 8 * 2**20
QUERY_CHARACTERS = 10_000
TEXT_CHARACTERS = 100_000
MAX_QUERIES = 64
MAX_TEXTS = 2048
MAX_K = 1000
MAX_OFFSET = 10_000
MAX_PAIRS = 10_000
MAX_SPOTS = 200
MAX_SUGGESTED = 1000  # queries to choose suggestions from
