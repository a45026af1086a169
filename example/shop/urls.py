from django.urls import path

from shop import views

urlpatterns = [
    path("", views.index, name="index"),
    path("trigger/", views.trigger, name="trigger"),
    path("records/", views.records, name="records"),
]
