// Which words of two texts are only in one: the shortest edit script over words (Myers 1986).
"use strict";
sp2dpo.words = (text) => text.match(/\s+|[\p{L}\p{N}_'’]+|[^\s\p{L}\p{N}_]/gu) || [];

// For each token of a and of b, whether it is in both texts in this order. Beyond `most` edits the
// texts are too different for a script to help; then null.
sp2dpo.common = (a, b, most = 1500) => {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let endA = a.length, endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  const inA = new Array(a.length).fill(true), inB = new Array(b.length).fill(true);
  const n = endA - start, m = endB - start;
  inA.fill(false, start, endA);
  inB.fill(false, start, endB);
  const furthest = new Map([[1, 0]]), trail = [];
  for (let edits = 0; edits <= Math.min(n + m, most); edits++) {
    trail.push(new Map(furthest));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest.get(k - 1) < furthest.get(k + 1));
      let x = down ? furthest.get(k + 1) : furthest.get(k - 1) + 1;
      let y = x - k;
      while (x < n && y < m && a[start + x] === b[start + y]) { x++; y++; }
      furthest.set(k, x);
      if (x >= n && y >= m) {
        back(trail, n, m, (i, j) => { inA[start + i] = true; inB[start + j] = true; });
        return [inA, inB];
      }
    }
  }
  return null;

  function back(trail, x, y, same) {
    for (let edits = trail.length - 1; edits >= 0; edits--) {
      const before = trail[edits], k = x - y;
      const down = k === -edits || (k !== edits && before.get(k - 1) < before.get(k + 1));
      const from = down ? k + 1 : k - 1;
      const fromX = before.get(from), fromY = fromX - from;
      while (x > fromX && y > fromY && x > 0 && y > 0) { x--; y--; same(x, y); }
      x = fromX; y = fromY;
    }
  }
};

// The tokens as nodes, those that the other text lacks marked.
sp2dpo.marked = (tokens, shared) => {
  const part = document.createDocumentFragment();
  let at = 0;
  while (at < tokens.length) {
    let end = at;
    while (end < tokens.length && shared[end] === shared[at]) end++;
    const text = tokens.slice(at, end).join("");
    if (shared[at]) part.append(text);
    else {
      const mark = document.createElement("mark");
      mark.textContent = text;
      part.append(mark);
    }
    at = end;
  }
  return part;
};
