// Exact McNemar test of two entries on the same examples, and Holm's correction over all pairs of a board.
"use strict";
const McNemar = (() => {
  const unpack = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bits = Uint8Array.from({ length: 256 }, (_, byte) => {
    let count = 0;
    for (let rest = byte; rest; rest &= rest - 1) count += 1;
    return count;
  });

  // log(k!) for all k up to n.
  function logFactorials(n) {
    const table = new Float64Array(n + 1);
    for (let k = 2; k <= n; k += 1) table[k] = table[k - 1] + Math.log(k);
    return table;
  }

  // Two-sided p of a split b : c under Binomial(b + c, 1/2): twice the smaller tail, at most 1.
  function exact(b, c, logs) {
    const m = b + c;
    const k = Math.min(b, c);
    if (2 * k === m) return 1;
    let sum = 1;
    let term = 1;
    for (let i = k; i > 0; i -= 1) {
      term *= i / (m - i + 1);
      sum += term;
      if (term < 1e-18 * sum) break;
    }
    const log = logs[m] - logs[k] - logs[m - k] - (m - 1) * Math.LN2;
    return Math.min(1, Math.exp(log) * sum);
  }

  function split(first, second, n) {
    let both = 0;
    let one = 0;
    let two = 0;
    for (let i = 0; i < first.length; i += 1) {
      both += bits[first[i] & second[i]];
      one += bits[first[i] & ~second[i] & 255];
      two += bits[second[i] & ~first[i] & 255];
    }
    return { both, onlyFirst: one, onlySecond: two, neither: n - both - one - two };
  }

  // Holm (1979): the i-th smallest of m values times m - i + 1, never below the one before.
  function holm(values) {
    const order = values.map((_, i) => i).sort((i, j) => values[i] - values[j]);
    const adjusted = new Float64Array(values.length);
    let largest = 0;
    order.forEach((at, i) => {
      largest = Math.max(largest, Math.min(1, (values.length - i) * values[at]));
      adjusted[at] = largest;
    });
    return adjusted;
  }

  return { unpack, logFactorials, exact, split, holm };
})();
