"""What benches share: timing, reports, networks, cases."""
