/** Has a signal end this process in order, so that what it has started ends with it. */
export function endWithChildren(): void {
  const exitCodeOfInterrupt = 130;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => process.exit(exitCodeOfInterrupt));
  }
}
