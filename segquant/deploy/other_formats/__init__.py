"""A quantized denoiser in other libraries' formats, where they hold its recipe exactly."""

from segquant.deploy.other_formats.every_form import FORMS, WrittenForm, write_form
from segquant.deploy.other_formats.form_interface import Form, FormRefused, reasons_by_layer

__all__ = ["FORMS", "Form", "FormRefused", "WrittenForm", "reasons_by_layer", "write_form"]
