// A pasted error finds the page that shows it. The theme's search takes each word for the beginning of one, and
// counts a title a thousand times: the "be" of a message would lead to the benchmarks, whatever else it says. So a
// query of several words is looked for in the text alone, word for word and without the error's
// class, and a long word counts for more than a short one.
{
  const QUERY = 2; // the theme's message to its worker, beside those that set it up
  const OPERATORS = /[:~^*+\\"]/; // the search's own
  const asPasted = (text) => {
    const words = text.trim().split(/[\s-]+/).filter(Boolean);
    if (words.length < 4 || text.includes('"')) return text;
    const asked = words
      .filter((word) => !OPERATORS.test(word))
      .map((word) => (/[.,;]$/.test(word) ? `text:${word.slice(0, -1)}` : `text:${word}^${word.length}`));
    return asked.join(" ") || text;
  };
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...rest) {
    const asked = message?.type === QUERY ? { ...message, data: asPasted(message.data) } : message;
    return post.call(this, asked, ...rest);
  };
}
