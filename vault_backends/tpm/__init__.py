"""What a TPM 2.0 can prove about a key in it: evidence, its verification, and credential activation.

Nothing here is loaded before it is asked for; verifying needs no TPM."""
