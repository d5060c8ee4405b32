"""What several tests share: small pairs, controllers and the proof of floating-point ties."""
