"""Small models under each of JAX's upgrade flags, beside Linen under the same flag."""
