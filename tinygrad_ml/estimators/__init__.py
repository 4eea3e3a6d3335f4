"""Estimators with scikit-learn's contract, on numpy and cupy arrays alike."""

from importlib import import_module

_HOMES = {
    "LogisticRegression": "logistic",
    "LogisticRegressionCV": "logistic",
    "logistic_path": "logistic",
    "CalibratedClassifier": "calibration",
    "IsotonicCalibration": "calibration",
    "PlattScaling": "calibration",
    "TemperatureScaling": "calibration",
    "expected_calibration_error": "calibration",
    "reliability_curve": "calibration",
    "SOM": "som",
    "SOMClassifier": "som",
    "SOMRegressor": "som",
}
__all__ = list(_HOMES)


def __getattr__(name):
    """Each estimator is imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
