/** What the reader of the page can mend: one sentence on the cause and one on the cure. */
export class Problem extends Error {}
