"""How closely float32 results must agree with an oracle, the same in every test."""

RTOL = 1e-4
ATOL = 1e-6
