// Sphinx 9.0 names a stemmer for Chinese that it does not bring (its search finds nothing then);
// what stems the English words between the Chinese ones is the English one.
var ChineseStemmer = function () {
  return new EnglishStemmer();
};
