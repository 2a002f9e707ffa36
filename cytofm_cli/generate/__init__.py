"""Generation: a guided latent diffusion model of cells or tiles, trained as REPA-E trains one."""
