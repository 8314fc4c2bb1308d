document.querySelectorAll('.slides input[type=range]').forEach(function (slider) {
  var slides = slider.closest('.slides'), labels = slider.dataset.labels.split('|');
  slider.addEventListener('input', function () {
    slides.querySelectorAll('img').forEach(function (image) { image.hidden = image.dataset.step !== slider.value; });
    slides.querySelector('output').textContent = labels[slider.value];
  });
});
