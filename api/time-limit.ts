/** What `work` comes to, or `late` when that takes longer than `limitMs` milliseconds; the work goes on. Throws what it throws. */
export async function within<Result>(limitMs: number, work: Promise<Result>): Promise<Result | 'late'> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<'late'>((resolve) => {
    timer = setTimeout(() => resolve('late'), Math.max(0, limitMs));
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
